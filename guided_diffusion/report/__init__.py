"""What a person looks at: pages, figures and pictures of cases."""
